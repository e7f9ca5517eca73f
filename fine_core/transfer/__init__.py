"""Parts of transfer methods: what they train, add to a model and store; one file each."""
