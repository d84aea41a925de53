"""End-to-end encryption: what several features keep about the devices and keys of a user."""
