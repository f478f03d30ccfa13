"""OpenTelemetry: spans of turns, faculties and audits, an event for each evaluation, and metrics.

Only the API is used, which does nothing until the application configures an SDK. Names follow the semantic conventions
for generative AI where they have one; all others begin with ``safi.``. Contents (prompts, drafts, answers, reasons) and
memory keys are exported only with ``trace_contents``.
"""

SCOPE = "safi_agent"  # the name of the instrumentation scope
