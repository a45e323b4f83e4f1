// The client of the database that the fronts share, put right before anything loads it.
export { mendPostgres } from '@muster/database/mended-postgres'
