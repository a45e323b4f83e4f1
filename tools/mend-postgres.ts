// Before the tests of a file: postgres.js as the servers have it.
import { mendPostgres } from '@muster/database/mended-postgres'

mendPostgres()
