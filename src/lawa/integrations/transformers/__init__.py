"""Averages in the training of a HF Trainer, and of TRL's.

callback = LawaCallback(mode="evaluate", every=1000, window=5).attach(trainer)
trainer.train()
with callback.averager.averaged():
    trainer.push_to_hub()

train begins  the averager is made, of model and optimizer as accelerate prepared them; resuming loads its state
step begins   a pending replacement is carried out
step ends     θ_t is captured, t = state.global_step: once for all micro-batches of an update
evaluation    a second one for each average that is ready: eval_NAME_loss
checkpoint-N  its folder lawa/ is the averager's state, averages/NAME/ what from_pretrained reads
train ends    a replacement that is still pending is carried out, before the best model is loaded
"""

from lawa.errors import require

try:
    from lawa.integrations.transformers.callback import LawaCallback
except ModuleNotFoundError:
    require("transformers", extra="transformers")
    require("accelerate", extra="transformers")
    raise

__all__ = ["LawaCallback"]
