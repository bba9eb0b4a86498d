"""How much memory a run would take on each GPU, before there is one."""

from facm.plan.predict import Plan, plan

__all__ = ["Plan", "plan"]
