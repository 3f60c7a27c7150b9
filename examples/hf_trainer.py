"""Latest weight averaging in the Hugging Face Trainer: a tiny Llama from scratch, on a made-up language, on a CPU.

    python examples/hf_trainer.py [OUTPUT]

The two lines are marked. At a constant learning rate the average of the latest weights is ahead of each of them.
"""

import sys

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from lawa.integrations.transformers import LawaCallback  # 1

torch.manual_seed(0)
WORDS, LENGTH = 64, 32
odds = torch.softmax(2 * torch.randn(WORDS, WORDS), dim=1)  # of each word after each word: what there is to learn


def text(sequences: int) -> Dataset:
    words = [torch.randint(WORDS, (sequences,))]
    for _ in range(LENGTH - 1):
        words.append(torch.multinomial(odds[words[-1]], 1)[:, 0])
    rows = torch.stack(words, dim=1).tolist()
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=WORDS, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH,
    )
)  # fmt: skip
args = TrainingArguments(
    sys.argv[1] if len(sys.argv) > 1 else "hf-trainer-output",
    max_steps=200, per_device_train_batch_size=16, learning_rate=1e-2, lr_scheduler_type="constant",
    eval_strategy="steps", eval_steps=50, save_strategy="steps", save_steps=50, save_total_limit=2,
    metric_for_best_model="eval_lawa_loss", load_best_model_at_end=True,
    use_cpu=True, report_to="none", disable_tqdm=True,
)  # fmt: skip
trainer = Trainer(model, args, train_dataset=text(3200), eval_dataset=text(64))
LawaCallback(mode="evaluate", every=5, window=8).attach(trainer)  # 2
trainer.train()

best = f"{trainer.state.best_model_checkpoint}/averages/lawa"
assert AutoModelForCausalLM.from_pretrained(best).num_parameters() == model.num_parameters()
print(f"the best average is in {best}, and it is the model now")
record = next(r for r in trainer.state.log_history if r["step"] == trainer.state.best_global_step and "eval_loss" in r)
print(f"loss of the model {record['eval_loss']:.4f}")
print(f"loss of its average {record['eval_lawa_loss']:.4f}")
