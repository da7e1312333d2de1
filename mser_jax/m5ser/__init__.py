"""Making speech: texts, engine, writer."""
