"""What train.py, evaluate.py and predict.py do once their configuration is there."""
