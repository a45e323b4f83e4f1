// The partition's way to its PostgreSQL, and what its failures are called.
import { isDatabaseAway, isUnstorable } from '@muster/database/connect'
import { Refusal } from '@muster/shared/errors'

export { connect, inTransaction, isDatabaseAway, isDuplicate, type Sql } from '@muster/database/connect'

/** The refusal for an error that means `database-away`, or a text that cannot be stored; every other error unchanged. */
export function refusalOfDatabase(error: unknown): unknown {
  if (isUnstorable(error))
    return new Refusal('invalid-input', 'a text holds the character NUL, which cannot be stored or searched for', {}, { cause: error })
  if (!isDatabaseAway(error)) return error
  return new Refusal('database-away', 'the partition asked its PostgreSQL and got no answer', {}, { cause: error })
}
