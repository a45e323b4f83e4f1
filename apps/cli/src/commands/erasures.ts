// `muster machine erasures`: what was done to the disks of a machine when it was given back.
import { machines as calls } from '@muster/shared/contract/machines'
import type { ErasureCertificate } from '@muster/shared/machine'
import { isSignature } from '@muster/shared/signature'
import type { Command } from 'commander'
import { type Cli, examples, formatOf, remark } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt, Exit } from '../exit-codes.ts'
import { type Shape, showList } from '../output/show.ts'
import { diskText, timeText } from '../output/text.ts'
import { parseCount } from '../quantities.ts'
import { checked } from '../schema-options.ts'

export function addErasures(parent: Command, cli: Cli): void {
  const call = calls.erasures
  const command = parent.command('erasures').summary('erasure certificates of a machine').argument('<id>', 'id of a machine')
  command
    .description(
      `${call.summary}, each checked against its signature. The signed text, the signature and the partition's public key are in -o json.`,
    )
    .option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
  examples(command, ['machine erasures lon1-4y3h7n', "machine erasures lon1-4y3h7n -o json | jq -r '.items[].payload'"])
  command.action(async (id: string, options: { limit?: number }) => {
    const input = checked(call, { id, ...options })
    const { client } = await connect(cli, command)
    const whole = await attempt(`the erasures of ${id}`, client.machines.erasures(input))
    const forged = new Set<ErasureCertificate>()
    for (const certificate of whole.items) if (!(await isGenuine(certificate))) forged.add(certificate)
    showList(cli, formatOf(command), whole, shape(cli.now(), forged))
    if (forged.size === 0) return
    remark(cli, `muster: ${forged.size} of ${whole.items.length} certificates are not what the partition signed`)
    throw new Exit('unexpected')
  })
}

/** Whether the signed text is the partition's, and says what is shown. */
async function isGenuine({ payload, signature, key, machine, disk, serial, outcome }: ErasureCertificate): Promise<boolean> {
  const shown = { machine, disk, serial, outcome }
  const said = JSON.parse(payload) as Record<string, unknown>
  const isSame = Object.entries(shown).every(([name, value]) => said[name] === value)
  return isSame && (await isSignature('erasure certificate', payload, { signature, key }))
}

const shape = (now: number, forged: ReadonlySet<ErasureCertificate>): Shape<ErasureCertificate> => ({
  columns: [
    { title: 'ERASED', text: ({ at }) => timeText(at, now) },
    { title: 'DISK', text: ({ disk }) => disk },
    { title: 'SERIAL', text: ({ serial }) => serial },
    { title: 'SIZE', text: ({ sizeBytes }) => diskText(sizeBytes), align: 'right' },
    { title: 'OUTCOME', text: ({ outcome, samples }) => (samples > 0 ? `${outcome}, ${samples} samples are zero` : outcome) },
    { title: 'OWNER', text: ({ owner }) => owner ?? '-' },
    {
      title: 'SIGNATURE',
      text: certificate => (forged.has(certificate) ? 'WRONG' : `right, by ${certificate.key.slice(0, 16)}`),
      style: certificate => (forged.has(certificate) ? 'red' : undefined),
    },
  ],
  name: ({ id }) => String(id),
  none: 'No disk of this machine was erased yet.',
})
