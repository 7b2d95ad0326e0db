"""What only a GPU needs; nothing here is imported before it is asked for."""
