"""What methods are put together from; nothing here is a method."""
