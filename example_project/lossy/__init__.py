"""A bad line: a proxy that loses some requests and some answers.

``python -m lossy --upstream http://127.0.0.1:8000 --drop 0.3 --seed 1``. Who has no answer can't
know whether the other side has done what was asked: the two losses look the same.
"""
