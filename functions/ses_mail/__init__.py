"""The domain of ses-mail: what is decided and done with an email, free of Lambda events."""
