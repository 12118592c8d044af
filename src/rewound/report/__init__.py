"""The report: one self-contained page that answers an experiment's question, with its uncertainty and its costs.

    folders -> study -> sections (sentences, figures, tables) -> page.html
                                                             -> --watch: the same page, served while a grid runs

Everything is drawn before the page is opened: figures are SVG by matplotlib, with colours that follow the reader's theme; the
page asks nobody for anything, and says what it says without JavaScript too. Needs ``pip install 'rewound[report]'``.
"""
