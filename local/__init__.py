"""The embedded cloud: everything that ses-mail needs from AWS and Google, on one machine."""
