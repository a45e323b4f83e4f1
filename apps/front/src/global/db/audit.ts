// The audit log of the fronts, in the database they share.
export { AuditLog } from '@muster/database/audit-log'
