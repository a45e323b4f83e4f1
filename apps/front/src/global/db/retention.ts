// How old rows leave the database that the fronts share.
export { type Rule, removeOld } from '@muster/database/retention'
