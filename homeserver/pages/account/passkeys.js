// Passkeys: the only part of the account pages that needs a script.
