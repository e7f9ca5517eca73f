"""What transfer methods train, add and store, one file each."""
