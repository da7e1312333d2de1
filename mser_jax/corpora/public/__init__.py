"""One module a public corpus, named as in specs; see public_corpus.py for what they share."""

import pkgutil

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
