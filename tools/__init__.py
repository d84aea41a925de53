"""Programs that build and check the checkout itself. None of them is installed with the server."""
