"""The language that flows, serving and training share: events, features, stores and models."""
