"""The paper's tables and figures, re-run over seeds: which networks are trained, measured and compared.

One file a study; ``setting.py`` is the size they are done at, ``entries.py`` the networks that several share.
"""
