"""Tables, figures and the page, built from run records and small files; no model is loaded here."""
