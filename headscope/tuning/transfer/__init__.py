"""Transfer: a policy for a model from what another model's heads lost, never by index."""
