"""A run's checkpoints, written while training goes on.

    RUN/checkpoints/step00001000/   format "hf": a Hugging Face model directory
                                    format "dcp" (sharded runs): config.json, tokenizer files, weights/ of torch DCP
                      training/     what training needs to go on: state.json, the optimizer, running averages and
                                    snapshots/00001000…, each written once and then linked from checkpoint to checkpoint
    RUN/averages/NAME/step00001000/ an average's weights, the same way, with provenance.json
    RUN/final/                      what training delivers, always a Hugging Face model directory

The way of a checkpoint: the live state is copied to host memory (`staging`), which is all that training waits for;
behind it a thread (`writer`) writes it in its format (`whole`, `sharded`), publishes it, and lets go of what the
configuration does not keep (`retain`). `load` brings a fresh process to where a checkpoint was made.
"""
