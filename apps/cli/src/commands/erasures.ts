// `muster machine erasures`: what was done to the disks of a machine when it was given back.
import { machines as calls } from '@muster/shared/contract/machines'
import type { ErasureCertificate } from '@muster/shared/machine'
import type { Command } from 'commander'
import { type Cli, examples, formatOf } from '../cli.ts'
import { connect } from '../connection.ts'
import { attempt } from '../exit-codes.ts'
import { type Shape, showList } from '../output/show.ts'
import { diskText, timeText } from '../output/text.ts'
import { parseCount } from '../quantities.ts'
import { checked } from '../schema-options.ts'

export function addErasures(parent: Command, cli: Cli): void {
  const call = calls.erasures
  const command = parent.command('erasures').summary('erasure certificates of a machine').argument('<id>', 'id of a machine')
  command
    .description(`${call.summary}. The signed text, the signature and the partition's public key are in -o json.`)
    .option('--limit <n>', 'at most so many (100 where left out)', text => parseCount(text, 1))
  examples(command, ['machine erasures lon1-4y3h7n', "machine erasures lon1-4y3h7n -o json | jq -r '.items[].payload'"])
  command.action(async (id: string, options: { limit?: number }) => {
    const input = checked(call, { id, ...options })
    const { client } = await connect(cli, command)
    showList(cli, formatOf(command), await attempt(`the erasures of ${id}`, client.machines.erasures(input)), shape(cli.now()))
  })
}

const shape = (now: number): Shape<ErasureCertificate> => ({
  columns: [
    { title: 'ERASED', text: ({ at }) => timeText(at, now) },
    { title: 'DISK', text: ({ disk }) => disk },
    { title: 'SERIAL', text: ({ serial }) => serial },
    { title: 'SIZE', text: ({ sizeBytes }) => diskText(sizeBytes), align: 'right' },
    { title: 'OUTCOME', text: ({ outcome, samples }) => (samples > 0 ? `${outcome}, ${samples} samples are zero` : outcome) },
    { title: 'OWNER', text: ({ owner }) => owner ?? '-' },
  ],
  name: ({ id }) => String(id),
  none: 'No disk of this machine was erased yet.',
})
