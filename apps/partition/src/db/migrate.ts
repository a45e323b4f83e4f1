// The schema of a partition's database: the numbered files in migrations/.
import { migrate as migrateFolder } from '@muster/database/migrate'

/** Brings the database at `url` to this release's schema. Returns the names of the migrations applied. */
export function migrate(url: string): Promise<string[]> {
  return migrateFolder(url, new URL('./migrations/', import.meta.url))
}
