"""The audit trail of marking: one record for each utterance or turn that had audio, without its text or audio."""

from gateway.audit.trail import AuditEntry, AuditTrail

__all__ = ["AuditEntry", "AuditTrail"]
