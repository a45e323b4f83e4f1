// The architecture rules in biome.json really refuse what docs/architecture.md forbids: each is tried on a planted file in a copy of the tree's shape.
import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, expect, test } from 'vitest'

const root = fileURLToPath(new URL('../../', import.meta.url))
let tree: string

beforeAll(() => {
  tree = mkdtempSync(path.join(tmpdir(), 'muster-rules-'))
  const rules = JSON.parse(readFileSync(path.join(root, 'biome.json'), 'utf8'))
  writeFileSync(path.join(tree, 'biome.json'), JSON.stringify({ ...rules, vcs: { enabled: false } }))
})
afterAll(() => rmSync(tree, { recursive: true, force: true }))

/** What the linter says of a tree that holds these files. */
function lint(files: Record<string, string>): Promise<string> {
  for (const [name, content] of Object.entries(files)) {
    const file = path.join(tree, name)
    mkdirSync(path.dirname(file), { recursive: true })
    writeFileSync(file, content)
  }
  return new Promise(resolve => {
    const args = ['lint', '--colors=off', '--max-diagnostics=50', ...Object.keys(files)]
    execFile(path.join(root, 'node_modules/.bin/biome'), args, { cwd: tree }, (_, stdout, stderr) => resolve(stdout + stderr))
  })
}

const imports = (what: string) => `import { thing } from '${what}'\nexport const same = thing\n`

test.each([
  ['libs/shared/src/probe.ts', '@muster/server/log', 'libs/shared knows nobody'],
  ['libs/drivers/src/probe.ts', '@muster/partition/partition', 'libs know no app'],
  ['libs/server/src/probe.ts', '@muster/drivers/driver', 'libs/server knows libs/shared only'],
  ['libs/database/src/probe.ts', '@muster/server/log', 'libs/database knows libs/shared only'],
  ['apps/front/src/probe.ts', 'postgres', 'a front keeps nothing'],
  ['apps/front/src/probe.ts', '@muster/partition/partition', 'a front knows no other app'],
  ['apps/cli/src/probe.ts', '@muster/partition/partition', 'a client of the contract'],
  ['apps/partition/src/domain/probe.ts', 'postgres', 'SQL lives in db/ only'],
  ['apps/partition/src/domain/probe.ts', '../doors/boot.ts', 'doors call the domain'],
  ['apps/partition/src/domain/power/probe.ts', '../../doors/boot.ts', 'doors call the domain'],
  ['apps/partition/src/db/probe.ts', '../domain/view.ts', 'db knows nobody above it'],
  ['apps/partition/src/backend/probe.ts', '../doors/bus.ts', 'doors call the backend'],
  ['apps/partition/src/doors/probe.ts', './boot.ts', 'doors do not import doors'],
])('%s may not import %s', async (file, what, why) => {
  expect(await lint({ [file]: imports(what) })).toContain(why)
})

test('an import cycle is refused', async () => {
  const said = await lint({ 'libs/shared/src/one.ts': imports('./two.ts'), 'libs/shared/src/two.ts': imports('./one.ts') })
  expect(said).toContain('noImportCycles')
})

test('what is allowed passes', async () => {
  const said = await lint({ 'apps/partition/src/db/probe-allowed.ts': "import postgres from 'postgres'\nexport const same = postgres\n" })
  expect(said).not.toContain('noRestrictedImports')
})
