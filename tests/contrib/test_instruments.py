"""Prometheus and OpenTelemetry offer the same metrics, from one list."""

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry

from django_dblock.contrib import opentelemetry_metrics, prometheus
from django_dblock.contrib.receivers import INSTRUMENTS, first_part


def test_prometheus_has_every_instrument():
    registry = CollectorRegistry()
    prometheus._Metrics(registry, first_part)
    offered = {family.name: family.documentation for family in registry.collect()}
    assert offered == {each.prometheus: each.text for each in INSTRUMENTS}


def test_opentelemetry_has_every_instrument():
    provider = MeterProvider([InMemoryMetricReader()])
    metrics = opentelemetry_metrics.Metrics(provider.get_meter("tests"), first_part)
    offered = {
        (each.name, each.unit, each.description)
        for each in vars(metrics).values()
        if hasattr(each, "unit")
    }
    assert offered == {(each.opentelemetry, each.unit, each.text) for each in INSTRUMENTS}
    provider.shutdown()


def test_help_texts_are_distinct_sentences():
    texts = [each.text for each in INSTRUMENTS]
    assert len(set(texts)) == len(texts)
    assert all(text.endswith(".") and text[0].isupper() for text in texts)
