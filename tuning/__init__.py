"""What all methods share: the contract, the trainer, a run and its identity."""
