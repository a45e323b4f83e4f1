// Accepting a partition by command line, with its settings from a file.
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import type { TestServer } from './server.ts'

let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
})

const accept = (settings: string, ...more: string[]) => {
  const file = join(home.folder, 'par3.yaml')
  writeFileSync(file, settings)
  return home.muster(['partition', 'accept', 'par3', '--os', 'debian/12', '--file', file, ...more])
}

test('a dry run shows, field by field, what would be written, and the settings are those of the file', async () => {
  server.answers['enrolment.accept'] = ({ name, erase, subnets, dryRun }) => ({
    name,
    generation: 7,
    outcome: dryRun ? 'dry-run' : 'written',
    differences: [{ kind: 'partition', name, what: 'added', before: null, after: { erase, subnets: Object.keys(subnets ?? {}) } }],
  })
  const settings = 'erase: full\nsubnets:\n  servers: { cidr: 10.0.0.0/24, vlan: 40 }\n'
  const dry = await accept(settings, '--dry-run')
  expect([dry.code, dry.stdout.split('\n')]).toEqual([
    0,
    [
      'nothing was changed, generation 7 stays in force; it would be:',
      '+ partition/par3',
      '    erase: "full"',
      '    subnets: ["servers"]',
      '',
    ],
  ])
  const done = await accept(settings)
  expect([done.code, done.stdout]).toEqual([0, 'partition par3 is accepted, in generation 7 of the global configuration\n'])
  expect(server.asked.at(-1)?.input).toMatchObject({
    operatingSystems: ['debian/12'],
    erase: 'full',
    subnets: { servers: { cidr: '10.0.0.0/24', vlan: 40, gateway: null } },
    dryRun: false,
  })
})

test.each([
  ['erase: sometimes', /erase/],
  ['natsKey: UAAA', /unknown natsKey; it may say erase, enlisted, enlistedMost, subnets/],
  ['- erase', /holds no settings/],
  ['subnets: { servers: { cidr: 10.0.0.9/24 } }', /whose host part is zero/],
])('a file with %s is refused before anybody is asked', async (settings, words) => {
  const { code, stderr } = await accept(settings)
  expect(code).toBe(2)
  expect(stderr).toMatch(words)
  expect(server.asked).toEqual([])
})
