"""Export tasks that become real documents, by workers in other processes, over any broker."""
