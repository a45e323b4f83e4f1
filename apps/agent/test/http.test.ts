// What the agent makes of the partition's word on its job: its shell, run by busybox on this computer, with memory of its own below /run.
import { spawn } from 'node:child_process'
import { createServer, type Server, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { fileURLToPath } from 'node:url'
import { errorTable } from '@muster/shared/errors'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { missingPrograms } from './needs.ts'

const missing = missingPrograms(['busybox', 'curl', 'jq'], 'busybox-static curl jq')
const mayMount = missing === undefined && process.getuid?.() === 0
const folder = fileURLToPath(new URL('../root/muster', import.meta.url))
let server: Server
let answers: ((response: ServerResponse) => void)[]

beforeEach(async () => {
  server = createServer((request, response) => {
    request.resume().on('end', () => (answers.length > 1 ? answers.shift() : answers[0])?.(response))
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
})
afterEach(async () => {
  server.closeAllConnections()
  await new Promise(resolve => server.close(resolve))
})

const says = (status: number, body: object) => (response: ServerResponse) => void response.writeHead(status).end(JSON.stringify(body))

/** What the agent's shell says while it does this. */
async function agent(commands: string): Promise<string> {
  const text = `mount -t tmpfs tmpfs /run && cd "$1" && for each in http scripts work; do . ./$each.sh; done
    URL=$2 TOKEN=t; prepare_http; say() { echo "$*"; }; poweroff() { echo "poweroff $*"; exit 0; }
    end() { echo "end $*"; exit 1; }
    ${commands}`
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const child = spawn('unshare', ['--mount', 'busybox', 'sh', '-c', text, 'sh', folder, url], { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  child.stdout.on('data', (chunk: Buffer) => (said += chunk))
  await new Promise(resolve => child.on('close', resolve))
  return said
}

test.skipIf(!mayMount)(
  'a partition that is away is asked for its job again',
  async () => {
    answers = [response => response.destroy(), says(503, {}), says(200, { kind: 'erase' })]
    expect(await agent('get_job; jq -r .kind /run/answer')).toBe('erase\n')
  },
  60_000,
)

test.skipIf(!mayMount)(
  'a job that cannot be had is a failure that says why; a run that is over is none',
  async () => {
    const gone = says(errorTable['not-installable'].status, { detail: 'the files of debian/12 are gone' })
    answers = [gone, gone, says(204, {})]
    expect(await agent('get_job')).toBe(
      'failed in job: curl: (22) The requested URL returned error: 422 the files of debian/12 are gone \nend off failed in job\n',
    )
    answers = [says(401, { detail: 'its run is over' })]
    expect(await agent('get_job')).toMatch(/^end off no job: .*its run is over $/m)
  },
  60_000,
)

test.skipIf(!mayMount)(
  'a heartbeat that hears that the run is over ends the machine, another refusal does not',
  async () => {
    answers = [says(204, {}), says(500, {}), says(422, {}), says(422, {}), says(401, {})]
    expect(await agent('stand erase "" 0; heartbeat 0')).toBe('the partition says that this job is over: off\npoweroff -f -n\n')
    expect(answers).toHaveLength(1)
  },
  60_000,
)
