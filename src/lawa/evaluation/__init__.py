"""How good a model is on text it has not seen.

loss.py    the loss on fixed sequences, as the driver's loop computes it
text.py    a text as sequences: of a token store, of files, of batches
model.py   weights by name as a model of transformers
score.py   loss, perplexity, bits per byte of a model on a text
tasks.py   tasks of lm-eval, by lm-eval
done.py    records, by which what is done is not done again
asked.py   what is asked for; reading.py: models, tokenizers and texts of the checkpoints that were
run.py     `lawa evaluate`: checkpoints and averages of them on texts and tasks
"""
