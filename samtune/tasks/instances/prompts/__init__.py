"""Which object does a prompt show a model that finds all of them? Practised in training, and asked afterwards."""
