"""Public and own training runs: which checkpoints they have, their exact data, branching from them, following them."""
