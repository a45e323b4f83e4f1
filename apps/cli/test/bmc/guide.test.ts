// docs/my-bmc-does-not-answer.md quotes the hints as the program prints them: neither may change, come or go without the other.
import { readFileSync } from 'node:fs'
import { expect, test } from 'vitest'
import { exitOfKind } from '../../src/bmc/failure.ts'
import { exitTable } from '../../src/exit-codes.ts'

const read = (path: string) => readFileSync(new URL(`../../../../${path}`, import.meta.url), 'utf8')
const guide = read('docs/my-bmc-does-not-answer.md')
const quoted = [...guide.matchAll(/^> (.+)$/gm)].map(([, hint]) => hint as string)

/** Where a login, a link, an order or a check fails. What inventory, sensors and logs say explains itself. */
const sources = [
  ...['login', 'link', 'client', 'power', 'boot-next', 'check', 'sol'].map(name => `libs/drivers/src/ipmi/${name}.ts`),
  'libs/drivers/src/failure.ts',
  'apps/cli/src/bmc/check.ts',
  'apps/cli/src/commands/bmc.ts',
]

/** The sentences that stand behind `hint` in a source: `…` for what is put in when it is printed. */
function hintsIn(source: string): string[] {
  return [...source.matchAll(/\b\w*[hH]int(?::| =)|[hH]ints: \{/g)].flatMap(({ index }) => {
    const rest = source.slice(index)
    const statement = rest.slice(0, rest.search(/\n {2}[}\])]|\n *\}\)|\n\}|\n\n| \}[\])\n]/) + 1 || undefined)
    return [...statement.matchAll(/'((?:[^'\\\n]|\\.)*)'|"([^"\n]*)"|`((?:[^`\\]|\\.)*)`/g)]
      .map(([, single, double, template]) => (single ?? double ?? template ?? '').replace(/\$\{[^}]*\}/g, '…').replace(/\\(.)/g, '$1'))
      .filter(text => /^[A-Z].{20,}/.test(text))
  })
}

const hints = new Set(sources.flatMap(path => hintsIn(read(path))))

test('every hint about reaching, entering and switching a BMC is in the guide', () => {
  expect(hints.size).toBeGreaterThan(30)
  const missing = [...hints].filter(hint => !quoted.includes(hint))
  expect(missing).toEqual([])
})

test('the guide quotes no hint that the program does not print', () => {
  expect(quoted.filter(hint => !hints.has(hint))).toEqual([])
})

test('every kind of failure has its ending in a heading of the guide', () => {
  const headings = [...guide.matchAll(/^## (.+)$/gm)].map(([, heading]) => heading).join('\n')
  for (const [kind, exit] of Object.entries(exitOfKind))
    if (kind !== 'settings') {
      expect(headings).toMatch(new RegExp(`\\b${exitTable[exit].code}\\b`))
      expect(headings).toContain(kind)
    }
})
