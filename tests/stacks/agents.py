"""The agents of ``programs/agent.py``: started as their manuals say, with nothing sent anywhere."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


class Agent:
    """An agent that is not there: the control.

    Attributes:
        settings: what the agent's manual adds to Django's settings.
    """

    settings: dict[str, Any] = {}  # noqa: RUF012 - replaced, not changed

    def start(self) -> None:
        """Instrument, before Django and psycopg are imported."""

    def ready(self) -> None:
        """Instrument what needs the app registry."""

    def traced(self) -> Any:
        """Return the context of one transaction or root span."""
        return nullcontext()

    def texts(self) -> list[str]:
        """Return all spans, as text, that would have left the process."""
        return []


class Datadog(Agent):
    """ddtrace, as ``ddtrace-run`` starts it; each trace is kept instead of sent."""

    def start(self) -> None:
        import ddtrace
        from ddtrace.trace import TraceFilter, tracer

        spans: list[Any] = []

        class Keep(TraceFilter):
            def process_trace(self, trace: Any) -> None:
                spans.extend(trace)

        ddtrace.patch(psycopg=True, django=True)
        tracer.configure(trace_processors=[Keep()])
        self._tracer, self._spans = tracer, spans

    def traced(self) -> Any:
        return self._tracer.trace("program")

    def texts(self) -> list[str]:
        return [f"{span.name} {span.resource} {span.get_tags()}" for span in self._spans]


class Elastic(Agent):
    """elastic-apm with a transport that keeps each event."""

    def start(self) -> None:
        import elasticapm

        self._client = elasticapm.Client(
            service_name="stacks", transport_class="tests.stacks.agents_elastic.Kept",
            central_config="false", cloud_provider="none", span_compression_enabled="false",
        )  # fmt: skip
        elasticapm.instrument()

    @contextmanager
    def traced(self) -> Iterator[None]:
        self._client.begin_transaction("script")
        yield
        self._client.end_transaction("program")

    def texts(self) -> list[str]:
        return [json.dumps(event, default=str) for event in self._client._transport.events]


class NewRelic(Agent):
    """newrelic in developer mode, in which nothing is sent; each statement it records is kept."""

    def start(self) -> None:
        import newrelic.agent
        from newrelic.api.database_trace import DatabaseTrace

        newrelic.agent.global_settings().developer_mode = True
        newrelic.agent.initialize()
        self._application = newrelic.agent.register_application(name="stacks", timeout=10)
        self._agent = newrelic.agent
        self._texts: list[str] = []
        finalize = DatabaseTrace.finalize_data

        def kept(trace: Any, *arguments: Any, **options: Any) -> Any:
            self._texts.append(str(trace.sql))
            return finalize(trace, *arguments, **options)

        DatabaseTrace.finalize_data = kept

    def traced(self) -> Any:
        return self._agent.BackgroundTask(self._application, name="program")

    def texts(self) -> list[str]:
        return self._texts


class Sentry(Agent):
    """sentry-sdk with its Django integration; each envelope is kept."""

    def start(self) -> None:
        import sentry_sdk
        from sentry_sdk.transport import Transport

        envelopes: list[Any] = []

        class Keep(Transport):
            def capture_envelope(self, envelope: Any) -> None:
                envelopes.append(envelope)

        sentry_sdk.init(
            dsn="http://key@127.0.0.1:9/1", transport=Keep, traces_sample_rate=1.0,
            send_default_pii=False,
        )  # fmt: skip
        self._sdk, self._envelopes = sentry_sdk, envelopes

    def traced(self) -> Any:
        return self._sdk.start_transaction(name="program", op="script")

    def texts(self) -> list[str]:
        self._sdk.flush()
        return [
            json.dumps(span, default=str)
            for envelope in self._envelopes
            for item in envelope.items
            for span in (item.payload.json or {}).get("spans", [])
        ]


class OpenTelemetry(Agent):
    """OpenTelemetry's instrumentation of psycopg and of Django, with comments in the SQL."""

    def start(self) -> None:
        from opentelemetry import trace
        from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        self._spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        trace.set_tracer_provider(provider)
        PsycopgInstrumentor().instrument(enable_commenter=True)
        self._tracer = trace.get_tracer("stacks")

    def ready(self) -> None:
        from opentelemetry.instrumentation.django import DjangoInstrumentor

        DjangoInstrumentor().instrument(is_sql_commentor_enabled=False)

    def traced(self) -> Any:
        return self._tracer.start_as_current_span("program")

    def texts(self) -> list[str]:
        return [span.to_json() for span in self._spans.get_finished_spans()]


AGENTS: dict[str, type[Agent]] = {
    "none": Agent,
    "ddtrace": Datadog,
    "elasticapm": Elastic,
    "newrelic": NewRelic,
    "sentry_sdk": Sentry,
    "opentelemetry": OpenTelemetry,
}
