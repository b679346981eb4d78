"""Whatever happens to a fleet, in any order: random commands against the real core, judged by a second opinion."""
