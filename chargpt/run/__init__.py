"""What surrounds a training run: its configuration, its folder, its callbacks, and how it goes on."""
