"""The experiments of a commit side by side: changed params, headline metrics and their difference."""
