"""Tables, figures and the page, made from run records and small files; no model is loaded here."""
