/** The benchmarks as a program: small and short, they end well and say what they measured in one line. No figure is held against a clock. */
import { spawn } from 'node:child_process'
import { expect, test } from 'vitest'

const program = new URL('../src/bench/main.ts', import.meta.url).pathname

async function bench(...args: string[]): Promise<{ code: number | null; output: string; progress: string }> {
  const child = spawn(process.execPath, [program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  let output = ''
  let progress = ''
  child.stdout.on('data', (text: Buffer) => {
    output += text
  })
  child.stderr.on('data', (text: Buffer) => {
    progress += text
  })
  const code = await new Promise<number | null>(resolve => child.once('close', resolve))
  return { code, output, progress }
}

/** Every number in it, by its path. */
function numbersIn(value: unknown, path = ''): [string, number][] {
  if (typeof value === 'number') return [[path, value]]
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([name, item]) => numbersIn(item, `${path}.${name}`))
}

test('a quick run measures allocations, power and booting, finds no wrong result, and ends with one line of JSON', {
  timeout: 600_000,
}, async () => {
  const { code, output, progress } = await bench('p1,p2,p3,power,boot', '--quick', '--partitions', '2', '--machines', '120')
  expect(code, progress).toBe(0)
  const line = output.trimEnd().split('\n').at(-1) as string
  const result = JSON.parse(line) as Record<string, { cases: object[]; sizes: object[] }>
  expect(result).toMatchObject({ bench: 'muster', faults: [], p1: { partitions: 2, machines: 120 }, p2: { machines: 120 } })
  expect(result.p1?.cases).toHaveLength(4)
  expect(result.p2?.cases).toHaveLength(2)
  expect(result.p3?.sizes.map(size => (size as { partitions: number }).partitions)).toEqual([1, 2])
  // A slice so short may end before a busy disk has done anything in it, so what must be there is something in all of them together.
  const measured = numbersIn([result.p1?.cases, result.p2?.cases])
  expect(
    measured
      .filter(([, figure]) => !Number.isFinite(figure) || figure < 0)
      .map(([path]) => path)
      .filter(path => !/addedToIdle/.test(path)),
  ).toEqual([])
  const total = (of: unknown) =>
    numbersIn(of)
      .filter(([path]) => /\.perSecond$/.test(path))
      .reduce((sum, [, figure]) => sum + figure, 0)
  expect(total(result.p1?.cases)).toBeGreaterThan(0)
  expect(total(result.p2?.cases)).toBeGreaterThan(0)
  expect(output).toMatch(/^P1 {2}/m)
  // Whether the goals of time are met is for people to read.
  expect(output).toMatch(/^ {2}goal p99 of the scripts ≤ 200 ms: (not )?met$/m)
  expect(output).toMatch(/^ {2}goal no script lost: met$/m)
  expect(result.boot).toMatchObject({ working: 60 })
})

test('a small rack is commissioned to the last machine, and allocations are the same with the audit log as without', {
  timeout: 400_000,
}, async () => {
  const { code, output, progress } = await bench('commission,audit', '--quick', '--partitions', '1', '--machines', '24')
  expect(code, progress).toBe(0)
  const result = JSON.parse(output.trimEnd().split('\n').at(-1) as string)
  expect(result).toMatchObject({ faults: [], commission: { few: { machines: 6, others: {} }, many: { machines: 24, others: {} } } })
  expect(output).toMatch(/^ {2}goal 2000 machines in ≤ 300 s: not measured$/m)
  const sides = (result.audit.cases as Record<'written' | 'skipped', { allocations: number }>[]).map(each => [each.written, each.skipped])
  expect(sides).toHaveLength(4)
  for (const [written, skipped] of sides) expect(written?.allocations).toBe(skipped?.allocations)
})

test('what it does not know is refused, and nothing is started', async () => {
  const { code, progress } = await bench('--only', 'p1,p99')
  expect(code).not.toBe(0)
  expect(progress).toContain('there is no p99')
  expect((await bench('--help')).output).toContain('--seconds')
})
