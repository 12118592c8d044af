"""Experiments: a recipe, its arms (technique x seed), and what they showed.

    recipe -> plan -> execute (arms, side by side) -> results -> table, picture, findings
                                                  -> verify

Everything here is read and written by the command line; nothing below knows it. No module of this package
imports torch when it is imported, so that asking for help, or for a finished run's table, is quick.
"""
