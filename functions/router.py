"""`Look up routes`: decides for every recipient and groups what is delivered together."""

import os
from typing import Any

from ses_mail import clients, observe, routing
from ses_mail.route import route

_METRICS = {routing.STORE: "Stored", routing.DROP: "Dropped", routing.PARK: "InvalidRules"}


@observe.task
def handler(event: dict[str, Any], _context: Any) -> dict[str, Any]:
    """{messageId, executionArn, recipients, verdict, to?} → {deliveries: […]}."""
    decisions = route(
        clients.dynamodb(),
        os.environ["ROUTING_TABLE"],
        event["recipients"],
        event["verdict"],
        event.get("to", ""),
    )
    for decision in decisions:
        observe.routing_decision(decision)
        if decision.action in _METRICS:
            observe.count(_METRICS[decision.action])
        if decision.reason == "no rule":
            observe.count("Unrouted")
    if event["verdict"] != "none":
        observe.count({"virus": "Viruses", "loop": "Loops"}[event["verdict"]])
    deliveries = [delivery.as_state() for delivery in routing.group(decisions)]
    for delivery in deliveries:
        if delivery["action"] in (routing.STORE, routing.DROP):
            result = {routing.STORE: "stored", routing.DROP: "dropped"}[delivery["action"]]
            observe.action_result(delivery, result, "", delivery["reason"])
    return {"deliveries": deliveries}
