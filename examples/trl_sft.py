"""Latest weight averaging in TRL's SFTTrainer: a tiny Llama learns to complete a made-up language, on a CPU.

    python examples/trl_sft.py [OUTPUT]

The two lines are marked. The same callback serves TRL's other trainers.
"""

import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from lawa.integrations.transformers import LawaCallback  # 1

torch.manual_seed(0)
WORDS, LENGTH = 64, 32
odds = torch.softmax(2 * torch.randn(WORDS, WORDS), dim=1)  # of each word after each word: what there is to learn


def examples(count: int) -> Dataset:
    words = [torch.randint(WORDS, (count,))]
    for _ in range(LENGTH - 1):
        words.append(torch.multinomial(odds[words[-1]], 1)[:, 0])
    rows = [[f"w{word}" for word in row] for row in torch.stack(words, dim=1).tolist()]
    return Dataset.from_dict(
        {"prompt": [" ".join(row[:4]) for row in rows], "completion": [" " + " ".join(row[4:]) for row in rows]}
    )


vocabulary = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)} | {"<end>": WORDS}, unk_token="<end>"))
vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, eos_token="<end>", pad_token="<end>")
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=WORDS + 1, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH + 1,
    )
)  # fmt: skip
args = SFTConfig(
    sys.argv[1] if len(sys.argv) > 1 else "trl-sft-output",
    max_steps=100, per_device_train_batch_size=16, learning_rate=1e-2, lr_scheduler_type="constant",
    max_length=LENGTH + 1, eval_strategy="steps", eval_steps=50, save_strategy="no", logging_strategy="no",
    use_cpu=True, report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = SFTTrainer(model, args, train_dataset=examples(1600), eval_dataset=examples(64), processing_class=tokenizer)
callback = LawaCallback(mode="evaluate", every=5, window=8).attach(trainer)  # 2
trainer.train()

metrics = trainer.evaluate()
callback.save_average(f"{args.output_dir}/average")  # a model directory, with the tokenizer
print(f"loss of the model {metrics['eval_loss']:.4f}")
print(f"loss of its average {metrics['eval_lawa_loss']:.4f}")
