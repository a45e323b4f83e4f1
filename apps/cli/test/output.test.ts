// What people and scripts read: tables, JSON, explanations, progress.
import type { CallAnswer, CallOutput } from '@muster/shared/contract/contract'
import { Refusal } from '@muster/shared/errors'
import { expect, test } from 'vitest'
import { eachWithServer } from './ground.ts'
import type { Home } from './muster.ts'
import { aMachine, anEvent, type TestServer, wholeCoverage } from './server.ts'

let server: TestServer
let home: Home
eachWithServer((own, empty) => {
  server = own
  home = empty
})

const partialCoverage = {
  asked: 2,
  answered: 1,
  partitions: [
    { name: 'lon1', outcome: 'answered' as const, ms: 3 },
    { name: 'par2', outcome: 'silent' as const, ms: 3000 },
  ],
}

const detailOf = (facts: Parameters<typeof aMachine>[0]) => ({ ...aMachine(facts), powerSettings: null, inventory: null })

test('a list is a table, and says which partition did not answer', async () => {
  server.answers['machines.list'] = () => ({
    items: [aMachine(), aMachine({ id: 'lon1-9k2c5d', state: 'broken' })],
    nextCursor: null,
    coverage: partialCoverage,
  })
  const { code, stdout, stderr } = await home.muster(['machine', 'list'])
  expect(stdout.split('\n').map(line => line.split(/ {2,}/).slice(0, 4))).toEqual([
    ['ID', 'HOSTNAME', 'STATE', 'POWER'],
    ['lon1-4y3h7n', 'web1', 'ready', 'off'],
    ['lon1-9k2c5d', 'web1', 'broken', 'off'],
    [''],
  ])
  expect(stderr).toBe('1 of 2 partitions answered; silent: par2 (3000 ms)\n')
  expect(code).toBe(0)
})

test('a machine says where its BMC is and how to make use of it, until it is switched by something', async () => {
  const bmc = { address: '10.9.0.7', mac: '52:54:00:bc:bc:07', ipmi: '2.0', firmware: '9.08' }
  server.answers['machines.get'] = () => ({ ...detailOf({ state: 'new', powerDriver: null }), inventory: { bmc } })
  const { stdout } = await home.muster(['machine', 'get', 'lon1-4y3h7n'])
  expect(stdout).toMatch(/BMC found +10\.9\.0\.7 {2}52:54:00:bc:bc:07 {2}IPMI 2\.0 {2}firmware 9\.08\n/)
  expect(stdout).toContain('muster machine update lon1-4y3h7n --power-driver ipmi --power-setting address=10.9.0.7 --power-settings FILE\n')
  // What an agent sent as an address, and is none, makes no command.
  server.answers['machines.get'] = () => ({ ...detailOf({ powerDriver: null }), inventory: { bmc: { address: '; rm -rf /' } } })
  expect((await home.muster(['machine', 'get', 'lon1-4y3h7n'])).stdout).not.toContain('--power-driver')
  server.answers['machines.get'] = () => ({ ...detailOf({}), inventory: { bmc } })
  expect((await home.muster(['machine', 'get', 'lon1-4y3h7n'])).stdout).not.toContain('--power-driver')
})

test('the status of a partition says what is wrong with it and what is weak; one that does not know the field says nothing of it', async () => {
  const status: CallAnswer<'partitions.get'> = {
    ...{
      name: 'lon1',
      status: 'degraded',
      url: 'http://lon1',
      version: '0.1.0',
      machines: {},
      overdue: 0,
      faulty: 0,
      replicas: [],
      lastSeq: 7,
    },
    problems: ['no loader is there'],
    weaknesses: ['whoever asks first is believed'],
    dhcp: [
      { from: '10.0.0.100', to: '10.0.0.149', subnet: 'servers', overruledBy: null },
      { from: '10.1.0.100', to: '10.1.0.199', subnet: null, overruledBy: null },
      { from: '10.0.0.20', to: '10.0.0.29', subnet: null, overruledBy: 'servers' },
    ],
  }
  server.answers['partitions.get'] = () => status
  const { stdout } = await home.muster(['partition', 'status', 'lon1'])
  expect(stdout).toMatch(/^Problem:? +no loader is there$/m)
  expect(stdout).toMatch(/^Weakness:? +whoever asks first is believed$/m)
  expect(stdout).toMatch(/^DHCP:? +10\.0\.0\.100-10\.0\.0\.149, by subnet servers$/m)
  expect(stdout).toMatch(/^DHCP:? +10\.1\.0\.100-10\.1\.0\.199, by MUSTER_DHCP_RANGES$/m)
  expect(stdout).toMatch(/^DHCP:? +10\.0\.0\.20-10\.0\.0\.29 of MUSTER_DHCP_RANGES does not count: subnet servers has dynamic ranges$/m)
  const { weaknesses: _, dhcp: __, ...older } = status
  server.answers['partitions.get'] = () => older
  expect(await home.muster(['partition', 'status', 'lon1'])).toMatchObject({ code: 0, stdout: expect.not.stringContaining('Weakness') })
})

test('config status counts against what is in force at the front, and says how each copy differs from it', async () => {
  const [digest, other] = ['a'.repeat(64), 'b'.repeat(64)]
  const name = (index: number) => `p${String(index).padStart(2, '0')}`
  const copy = (index: number, generation = 57, own = digest) => ({
    ...{ partition: name(index), generation, digest: own, takenAt: '2026-01-02T03:00:00Z', heardAt: null, problems: [] },
  })
  const all = Array.from({ length: 50 }, (_, index) => copy(index))
  const coverage = (silent: readonly string[]) => {
    const partitions = all.map(({ partition }) => ({
      ...{ name: partition, outcome: silent.includes(partition) ? ('silent' as const) : ('answered' as const), ms: 3 },
    }))
    return { asked: 50, answered: 50 - silent.length, partitions }
  }
  const status = async (answer: Partial<CallOutput<'config.copies'>>) => {
    server.answers['config.copies'] = () => ({ items: all, nextCursor: null, coverage: coverage([]), ...answer })
    const { stdout, stderr } = await home.muster(['config', 'status'])
    const rows = stdout.split('\n').map(line => line.split(/ {2,}/))
    return { rows, of: (index: number) => rows.find(([partition]) => partition === name(index))?.join(' '), stderr }
  }
  const inForce = { generation: 57, digest, changedAt: '2026-01-02T03:00:00Z' }

  const late = await status({
    items: [...all.slice(0, 48), copy(48, 55)],
    ...{ inForce, another: [], coverage: coverage(['p49']) },
    lastHeard: [{ partition: 'p49', generation: 56, digest: other }],
  })
  expect(late.rows[0]?.slice(0, 4).map(title => title.trim())).toEqual(['PARTITION', 'GENERATION', 'AGE', 'DRIFT'])
  expect(late.of(48)).toMatch(/^p48 55 .+ behind 2 -$/)
  expect(late.of(49)).toMatch(/^p49 56 - behind 1 silent: this is what it held/)
  expect(late.of(0)).not.toContain('behind')
  expect(late.stderr).toMatch(/^generation 57, written .+ ago, is applied on 48 of 50 partitions$/m)

  const nobody = await status({ inForce: { ...inForce, generation: 58, digest: other }, another: [], lastHeard: [] })
  expect(nobody.of(7)).toMatch(/behind 1 -$/)
  expect(nobody.stderr).toContain('is applied on 0 of 50 partitions')

  const parted = await status({
    items: [...all.slice(0, 48), copy(48, 57, other), copy(49, 55, other)],
    ...{ inForce, another: ['p49'], lastHeard: [] },
  })
  for (const index of [48, 49]) expect(parted.of(index)).toMatch(/another history -$/)
  expect(parted.stderr).toContain('is applied on 48 of 50 partitions')
  // A partition, asked alone, and a front of an older release.
  expect((await status({ items: [copy(0)], coverage: wholeCoverage })).stderr).toBe('generation 57 is applied on 1 of 1 partitions\n')
})

test('JSON is the answer as the API gave it', async () => {
  const page = { items: [aMachine()], nextCursor: null, coverage: partialCoverage }
  server.answers['machines.list'] = () => page
  const { stdout, stderr } = await home.muster(['machine', 'list', '-o', 'json'])
  expect(JSON.parse(stdout)).toEqual(page)
  expect(stderr).toBe('')
})

test('what a machine is called cannot command a terminal', async () => {
  server.answers['machines.list'] = () => ({
    items: [aMachine({ fault: { code: 'x', message: 'gone\u001b[2J\u0007', since: '2026-01-02T03:04:05Z' } })],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  const { stdout } = await home.muster(['machine', 'list'])
  expect(stdout).toContain('gone\ufffd[2J\ufffd')
})

test('filters reach the server', async () => {
  server.answers['machines.list'] = () => ({ items: [], nextCursor: null, coverage: wholeCoverage })
  const words =
    'machine list --state ready,broken --tag gpu --tag ssd --not-tag old --pool web --zone hall-2 --rack r7 --arch arm64 --power off'
  const more = '--owner ann --hostname we --fault --no-locked --partition lon1 --mac AA-BB-CC-00-11-22 --sort -cpus --limit 7'
  const { code, stderr } = await home.muster(`${words} ${more}`.split(' '))
  expect({ code, stderr }).toEqual({ code: 0, stderr: 'No machine matches.\n' })
  expect(server.asked[0]?.input).toEqual({
    state: ['ready', 'broken'],
    tag: ['gpu', 'ssd'],
    notTag: ['old'],
    pool: ['web'],
    zone: ['hall-2'],
    rack: ['r7'],
    arch: ['arm64'],
    power: 'off',
    owner: 'ann',
    hostname: 'we',
    fault: true,
    locked: false,
    partition: ['lon1'],
    mac: 'aa:bb:cc:00:11:22',
    sort: '-cpus',
    limit: 7,
  })
})

test('--all pages through to the end', async () => {
  server.answers['machines.list'] = ({ cursor }) =>
    cursor === 'two'
      ? { items: [aMachine({ id: 'lon1-222222' })], nextCursor: null, coverage: wholeCoverage }
      : { items: [aMachine({ id: 'lon1-111111' })], nextCursor: 'two', coverage: partialCoverage }
  expect(await home.muster(['machine', 'list', '--all', '-o', 'name'])).toEqual({
    code: 0,
    stdout: 'lon1-111111\nlon1-222222\n',
    // par2 missed a page, so the list as a whole is not whole.
    stderr: '1 of 2 partitions answered; silent: par2 (3000 ms)\n',
  })
  const one = await home.muster(['machine', 'list', '--limit', '1'])
  expect(one.stderr).toContain('There are more')
})

test('an allocation that finds nothing explains itself', async () => {
  server.answers['allocations.create'] = () => {
    throw new Refusal('no-match', 'no ready machine matches', {
      explanation: {
        considered: 12,
        matching: 0,
        removed: [
          { constraint: 'tags', machines: 3 },
          { constraint: 'memoryMib', machines: 12 },
        ],
        nearest: [{ machine: 'lon1-4y3h7n', misses: ['memoryMib'] }],
      },
      coverage: partialCoverage,
    })
  }
  const { code, stdout, stderr } = await home.muster(['allocate', '--tag', 'gpu', '--memory', '64GiB'])
  expect({ code, stdout }).toEqual({ code: 5, stdout: '' })
  expect(stderr.split('\n').slice(1, -2)).toEqual([
    '  12 ready machines were looked at; 0 match',
    '  removed  by',
    '       12  memoryMib',
    '        3  tags',
    '  nearest misses',
    '    lon1-4y3h7n  misses memoryMib',
    '  1 of 2 partitions answered; silent: par2 (3000 ms)',
  ])
  const json = await home.muster(['allocate', '--tag', 'gpu', '-o', 'json'])
  expect(JSON.parse(json.stderr)).toMatchObject({ code: 'no-match', status: 409, explanation: { considered: 12 } })
})

const allocated = (ids: string[]) => ({
  id: 'a-4y3h7nqk2c5d8f6g',
  owner: 'ann',
  state: 'confirmed' as const,
  strategy: 'best' as const,
  count: ids.length,
  note: '',
  createdAt: '2026-01-02T03:04:05Z',
  machines: ids.map(id => aMachine({ id, state: 'allocated' })),
  dryRun: false,
  coverage: wholeCoverage,
})

test('every constraint of a request reaches the server', async () => {
  server.answers['allocations.create'] = () => allocated(['lon1-4y3h7n'])
  const words =
    'allocate --count 2 --strategy spread --arch amd64 --cpus 8 --memory 64GB --disk size=500GB,kind=nvme,count=2 --key k1 --note ci'
  const more =
    '--interface speed=10G,subnet=10.0.0.0/24 --tag gpu --not-tag old --not-pool spare --os debian/12 --machine lon1-4y3h7n --name web1 --wait 90s'
  const { stdout, code } = await home.muster([...words.split(' '), ...more.split(' '), '-o', 'name'])
  expect({ stdout, code }).toEqual({ stdout: 'lon1-4y3h7n\n', code: 0 })
  expect(server.asked).toEqual([
    {
      name: 'allocations.create',
      key: 'k1',
      input: {
        strategy: 'spread',
        count: 2,
        dryRun: false,
        note: 'ci',
        wait: '45s',
        constraints: {
          arch: ['amd64'],
          cpus: 8,
          memoryMib: 61_036,
          disks: [{ sizeGb: 500, kind: 'nvme', count: 2 }],
          interfaces: [{ speedMbps: 10_000, subnet: '10.0.0.0/24', count: 1 }],
          tags: ['gpu'],
          notTags: ['old'],
          notPools: ['spare'],
          os: 'debian/12',
          machines: ['lon1-4y3h7n'],
          hostnames: ['web1'],
        },
      },
    },
  ])
})

test('--deploy puts the system on what was allocated', async () => {
  server.answers['allocations.create'] = () => allocated(['lon1-111111', 'lon1-222222'])
  server.answers['machines.deploy'] = ({ id }) => aMachine({ id, state: 'deploying' })
  const { code, stdout } = await home.muster(['acquire', '--count', '2', '--deploy', 'debian/12'])
  expect({ code, lines: stdout.split('\n').sort() }).toEqual({ code: 0, lines: ['', 'lon1-111111  deploying', 'lon1-222222  deploying'] })
  expect(server.asked.map(({ input }) => input.os ?? (input.constraints as { os: string }).os)).toEqual([
    'debian/12',
    'debian/12',
    'debian/12',
  ])
})

test('waiting shows how it goes, until it is done', async () => {
  const seen = [detailOf({ state: 'deploying', progress: 40, waitingFor: 'writing the image' }), detailOf({ state: 'deployed' })]
  server.answers['machines.deploy'] = () => aMachine({ state: 'deploying', progress: 0 })
  server.answers['machines.get'] = () => seen.shift() ?? detailOf({ state: 'deployed' })
  // The id stands where the optional duration could: it is taken for what it is.
  const { code, stdout, stderr } = await home.muster(['machine', 'deploy', '--os', 'debian/12', '--wait', 'lon1-4y3h7n'])
  expect(stderr).toBe('lon1-4y3h7n: deploying 0 %\nlon1-4y3h7n: deploying 40 %: writing the image\nlon1-4y3h7n: deployed\n')
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'lon1-4y3h7n  deployed\n' })
})

test('a machine that fails while one waits is told with its fault and what to do', async () => {
  const fault = { code: 'image-digest', message: 'the image is damaged', since: '2026-01-02T03:04:05Z', hint: 'fetch it again' }
  server.answers['machines.deploy'] = () => aMachine({ state: 'deploying' })
  server.answers['machines.get'] = () => detailOf({ state: 'failed_deployment', fault })
  const { code, stderr } = await home.muster(['machine', 'deploy', 'lon1-4y3h7n', '--os', 'debian/12', '--wait', '1m'])
  expect(stderr).toContain('lon1-4y3h7n: failed_deployment: the image is damaged (image-digest) · hint: fetch it again')
  expect(code).toBe(9)
})

test('waiting ends with its time', async () => {
  server.answers['machines.release'] = () => aMachine({ state: 'releasing' })
  server.answers['machines.get'] = () => detailOf({ state: 'releasing' })
  const { code, stderr } = await home.muster(['machine', 'release', 'lon1-4y3h7n', '--wait', '700ms'])
  expect(stderr).toContain('still releasing; stopped waiting')
  expect(code).toBe(8)
})

test('a power order is over when none is left and the BMC shows it', async () => {
  const explanation = {
    id: 'lon1-4y3h7n',
    state: 'deployed' as const,
    since: '2026-01-02T03:04:05Z',
    does: '',
    wantedPower: 'user' as const,
    powerSeenAt: null,
    waitingFor: null,
    deadline: null,
    lastFault: null,
    nextStep: '',
    allowed: [],
  }
  const order = {
    id: 1,
    machine: 'lon1-4y3h7n',
    action: 'on' as const,
    how: 'hard' as const,
    state: 'running' as const,
    askedBy: 'ann',
    askedAt: '2026-01-02T03:04:05Z',
    reason: '',
    startedAt: null,
    endedAt: null,
    fault: null,
  }
  let looks = 0
  server.answers['machines.power'] = () => ({ ...aMachine({ state: 'deployed' }), order })
  server.answers['machines.get'] = () => detailOf({ state: 'deployed', power: 'on' })
  server.answers['machines.explain'] = () =>
    looks++ === 0 ? { ...explanation, power: 'off', powerOrders: [order] } : { ...explanation, power: 'on', powerOrders: [] }
  const { code, stdout, stderr } = await home.muster(['machine', 'power', 'on', 'lon1-4y3h7n', '--wait', '20s'])
  expect({ code, stdout }).toEqual({ code: 0, stdout: 'lon1-4y3h7n  power on\n' })
  expect(stderr).toBe('lon1-4y3h7n: power on running\nlon1-4y3h7n: power on\n')
})

test('a machine shows what an agent found in it, as far as it is what it should be', async () => {
  const disks = ['nvme0n1', 'sda'].map(name => ({ name, serial: '', model: '', sizeBytes: 480e9, kind: 'ssd' as const }))
  server.answers['machines.get'] = () => ({
    ...detailOf({ disks }),
    inventory: {
      gpus: [{ address: '0000:3b:00.0', class: '0x030200', vendor: '0x10de', device: '0x20b5', driver: 'nvidia' }, 'nonsense'],
      numa: [
        { node: 0, cpus: '0-15', memoryMib: 65_536 },
        { node: 1, cpus: '16-31', memoryMib: 65_536 },
      ],
      disks: [
        { name: 'nvme0n1', wearPercent: 7, healthy: true },
        { name: 'sda', healthy: false },
      ],
      raidMembers: [
        {
          ...{ name: 'megaraid,4', controller: 'megaraid_sas', host: 0, disks: ['sda', 'sdb'], serial: 'S47NNA0N', model: 'MZ7KH480' },
          ...{ sizeBytes: 480_103_981_056, kind: 'ssd', healthy: false, wearPercent: 91, temperatureC: 30 },
        },
        { name: 'megaraid,5', disks: 'nonsense' },
      ],
      lldp: 'nonsense',
    },
  })
  const { stdout } = await home.muster(['machine', 'get', 'lon1-4y3h7n'])
  const lines = stdout.split('\n').map(line => line.replace(/ {2,}/g, '  '))
  expect(lines).toEqual(
    expect.arrayContaining([
      'Disk  nvme0n1  480 GB  ssd  7 % worn',
      'Disk  sda  480 GB  ssd  says that it fails',
      'RAID member  megaraid,4  of sda, sdb (megaraid_sas, host 0)  480 GB  ssd  MZ7KH480  S47NNA0N  30 °C  91 % worn, says that it fails',
      'RAID member  megaraid,5  does not say how it is',
      'GPU  0000:3b:00.0  10de:20b5  nvidia',
      'NUMA node  0  CPUs 0-15  64 GiB',
      'NUMA node  1  CPUs 16-31  64 GiB',
    ]),
  )
})

test('tags are changed one by one, and again where somebody else was faster', async () => {
  let tries = 0
  server.answers['machines.get'] = () => detailOf({ tags: ['gpu', 'old'], version: 3 + tries })
  server.answers['machines.update'] = ({ tags, version }) => {
    if (tries++ === 0) throw new Refusal('stale-version', 'it has version 4')
    return aMachine({ tags: tags ?? [], version: (version ?? 0) + 1 })
  }
  const { code } = await home.muster(['machine', 'update', 'lon1-4y3h7n', '--tag', 'new', '--untag', 'old', '--pool', 'web'])
  expect(code).toBe(0)
  const sent = server.asked.filter(({ name }) => name === 'machines.update').map(({ input }) => input)
  expect(sent).toEqual([3, 4].map(version => ({ id: 'lon1-4y3h7n', version, pool: 'web', tags: ['gpu', 'new'] })))
})

test('a tail goes on where its line broke, and ends with Ctrl-C', async () => {
  const running = home.start(['event', 'tail', '-o', 'json'])
  await expect.poll(() => server.streamsFrom.length, { timeout: 15_000 }).toBe(1)
  server.send(anEvent(8))
  await running.seen('stdout', '"seq":8')
  server.breakStreams()
  await running.seen('stderr', 'connection lost; going on from lon1:8')
  await running.seen('stderr', 'connected again')
  server.send(anEvent(9))
  await running.seen('stdout', '"seq":9')
  running.interrupt()
  const { code, stdout } = await running.ended
  expect(server.streamsFrom).toEqual(['lon1:7', 'lon1:8'])
  expect(
    stdout
      .trim()
      .split('\n')
      .map(line => JSON.parse(line).seq),
  ).toEqual([8, 9])
  expect(code).toBe(130)
})

test('a watch in a pipe prints a line for every change', async () => {
  let version = 1
  server.answers['machines.list'] = () => ({
    items: [aMachine({ version, state: version === 1 ? 'ready' : 'broken' })],
    nextCursor: null,
    coverage: wholeCoverage,
  })
  const running = home.start(['machine', 'watch'])
  await running.seen('stdout', 'lon1-4y3h7n  web1  ready')
  await expect.poll(() => server.streamsFrom.length, { timeout: 15_000 }).toBe(1)
  version = 2
  server.send(anEvent(8))
  await running.seen('stdout', 'lon1-4y3h7n  web1  broken')
  running.interrupt()
  expect((await running.ended).code).toBe(130)
})
