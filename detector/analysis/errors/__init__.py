"""What is wrong with detections: kinds of errors, what each costs, and what is taken for what."""
