"""A page that carries a trained model and runs it in any browser: `python -m chargpt.page`."""
