"""What generating costs on a GPU, in steps that each are a process of their own: a fault or a hang costs one step."""
